"""Networks and their registry: teachers, students and generators."""
