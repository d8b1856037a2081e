"""What an exported file itself says of each layer's arithmetic: scales, zero points, biases."""
