"""Sources of captioned pictures, one file each."""
