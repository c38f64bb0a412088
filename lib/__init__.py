"""The package behind the book: everything a chapter builds, tested and GPU-capable.

One folder for each subject; a reader who knows the chapter knows the folder.
"""
