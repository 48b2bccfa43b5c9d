"""Tests of what deploy/ has: the image, Compose, the Helm chart, the workflows."""
