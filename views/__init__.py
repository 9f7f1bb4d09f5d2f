"""What is drawn of single tiles: tile.py the numbers, picture.py the picture, colours.py what both need of colours."""
