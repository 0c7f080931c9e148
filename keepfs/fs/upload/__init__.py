"""What is written through upload/: staged, stored, recorded, and kept where it can't be stored."""
