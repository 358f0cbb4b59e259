"""What a trained model is used for: photos, a page in the browser, other programs."""
