"""Raw footage -> training clips."""
