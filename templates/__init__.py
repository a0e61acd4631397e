"""Launch specifications: Flex Templates, the container image, and Beam YAML. See README.md in this folder."""
