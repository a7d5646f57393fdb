"""Files and folders of weights: names, shapes, quantisation, reading and writing."""
