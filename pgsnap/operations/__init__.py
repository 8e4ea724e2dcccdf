"""What is done with a pipeline, one verb a file."""
