"""What one wants to know about a trained model: tables, timings, pictures, exported files."""
