"""From the weights that people have to single files, some rows at a time."""
