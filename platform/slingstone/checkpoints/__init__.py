"""What a resumed run needs, published whole or not at all."""
