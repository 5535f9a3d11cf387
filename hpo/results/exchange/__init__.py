"""The trials of a study in the form of other tools: CSV tables, TensorBoard, MLflow."""
