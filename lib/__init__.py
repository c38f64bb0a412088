"""The package behind the book: everything a chapter builds, tested and GPU-capable.

One folder for each subject; a reader who knows the chapter knows the folder.
"""

import warnings

# Pyro asks for tqdm's notebook bar; without ipywidgets it warns on every page, and falls back.
warnings.filterwarnings("ignore", "IProgress not found")
