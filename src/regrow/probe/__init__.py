"""What a model knows, asked before anything is trained."""
