"""All that knows MLflow: where its store is, what a run logs, which models are registered."""
