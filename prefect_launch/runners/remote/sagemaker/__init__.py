"""Runner of the resource `sagemaker`: training jobs of Amazon SageMaker."""
