"""Data that nothing is downloaded for: targets with known entropy, and bundled images."""
