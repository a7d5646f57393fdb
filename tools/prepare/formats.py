"""What the command can be asked for. Needs the standard library only."""

DTYPES = ("bf16", "fp8", "int8", "nvfp4")
COMFY, OFFICIAL = "comfy", "official"
LAYOUTS = (COMFY, OFFICIAL)
