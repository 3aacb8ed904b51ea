"""What a checkpoint of the official UltraMem training code is: shared by the importer and the way back."""
