"""--shapes, and the ranges that follow from it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests import builders
from ultramem_deploy.converters.engine.profiles import Range, make_profiles, parse_shapes
from ultramem_deploy.errors import InputError
from ultramem_deploy.planning import prefill_chunk


def test_parse_shapes() -> None:
    assert parse_shapes("1x2, 8x64,16x128", 512) == (Range(1, 8, 16), Range(2, 64, 128))
    assert parse_shapes("1,8,64", 4096) == (Range(1, 8, 64), Range(1, 512, 2048))
    assert parse_shapes(None, 300) == (Range(1, 1, 4), Range(1, 300, 300))


@given(st.text("0123456789x,-. ", max_size=20))
def test_any_text_is_three_rising_shapes_or_refused(text: str) -> None:
    try:
        batch, tokens = parse_shapes(text, 4096)
    except InputError as error:
        assert str(error).startswith("--shapes: ") and "\n" not in str(error)
    else:
        assert 1 <= batch.min <= batch.opt <= batch.max and 1 <= tokens.min <= tokens.opt <= tokens.max <= 4096


sizes = st.lists(st.integers(1, 2048), min_size=3, max_size=3).map(sorted)


@given(sizes, sizes, st.sampled_from([builders.PLAIN, builders.V1, builders.EXPANDED]))
def test_every_size_of_a_profile_rises_and_a_context_fits(batch: list[int], tokens: list[int], spec: object) -> None:
    """Whatever the shapes, a session that feeds pieces and then single tokens never leaves the profiles."""
    prefill, decode = make_profiles(spec, Range(*batch), Range(*tokens))  # type: ignore[arg-type]
    shape = ("batch_size", "sequence_length", "past_sequence_length", "total_sequence_length", 7)
    for profile in (prefill, decode):
        assert all(0 <= r.min <= r.opt <= r.max for r in profile.ranges(shape))
    assert decode.tokens == Range(1, 1, 1) and decode.past.max + 1 == tokens[2]
    assert prefill.past.max + 1 >= tokens[2] and prefill.past.min == decode.past.min == 0
    assert prefill.tokens.min <= prefill.tokens.max <= max(prefill.tokens.min, prefill_chunk(spec))  # type: ignore[arg-type]
