"""What a bundle, its engines and its validations write down, and how it is read back."""
