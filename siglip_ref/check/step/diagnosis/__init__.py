"""What wrong steps compute: from the catalogue, from forms of the optimiser, from numbers read off."""
