"""LongCat-Video's network and its maths. Imports torch and comfy; never the node layer."""
