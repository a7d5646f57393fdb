"""What to do about a file that cannot be read: one wording for each case."""

GET_AGAIN = "download or convert it again"
"""Any file that is damaged, as the end of a sentence."""
DOWNLOAD_AGAIN = "Download it again, for example from meituan-longcat/LongCat-Video, and compare the file sizes."
"""A part of the released model that is missing, damaged or of another model."""
