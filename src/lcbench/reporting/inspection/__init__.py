"""What a method kept of one prompt, shown: on the terminal and as one HTML file."""
