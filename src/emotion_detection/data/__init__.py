"""From a folder or zip of class folders to packed images and their splits."""
