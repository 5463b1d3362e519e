"""Example datasets that tfdp ships or makes: digits, Fashion-MNIST, textures, clicks."""
