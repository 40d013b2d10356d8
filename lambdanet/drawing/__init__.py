"""What is drawn on pictures, of data and of predictions alike: names, boxes, masks, label maps."""
