"""Sizes, given frames and refined videos: what a video is before the network sees it."""
