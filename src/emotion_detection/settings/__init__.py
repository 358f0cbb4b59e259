"""What params.yaml may say: its settings, what a search may draw of them, and recipes."""
