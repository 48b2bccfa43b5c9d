"""The pages, one module each: what it shows, and the routes that lead there."""
