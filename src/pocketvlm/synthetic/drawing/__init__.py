"""What all pictures are drawn with: canvases, fonts, lines, paper, figures."""
