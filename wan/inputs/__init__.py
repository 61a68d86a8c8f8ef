"""What a user gives and gets: prompts, images and videos, read, checked, and made into what the networks take."""
