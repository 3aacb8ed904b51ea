"""Quantise tables: fewer bytes a row, one scale a row; the receipt says what it cost."""
