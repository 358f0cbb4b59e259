"""What a model scores on the test images, and what is said of it."""
