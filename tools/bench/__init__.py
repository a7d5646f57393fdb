"""The benchmark: the network and its cache against the original's network, and refinement against dense attention."""
