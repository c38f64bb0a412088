"""Pictures in which it is known which pixels decide: objects on clutter, made on the spot."""

from lib.data.scenes.folder import folder
from lib.data.scenes.generate import KINDS, Grid, grid, scenes
from lib.data.scenes.scene import Layers, Scenes, tight

__all__ = ["KINDS", "Grid", "Layers", "Scenes", "folder", "grid", "scenes", "tight"]
