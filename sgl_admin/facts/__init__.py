"""What is here: devices, the model, the image, and whether they fit each other."""
