"""The life of one image, stage by stage."""
