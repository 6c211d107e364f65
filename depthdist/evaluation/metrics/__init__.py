"""What is measured of an image: pixels, edges, surfaces, grooves, and how sure a mean is."""
