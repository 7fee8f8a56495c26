"""Differentiable reward models as Ray Serve deployments: score and gradient of pictures for prompts."""
