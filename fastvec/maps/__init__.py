"""`fastvec map`: a picture of a corpus, as a web page that opens offline, and as a PNG.

- `job` runs it: `draw_map` is the function behind the command.
- `sample` reads the vectors of all rows, or of rows drawn evenly over the outputs.
- `projection` finds each vector's nearest neighbours, and projects the vectors to two dimensions.
- `clusters` divides the map into regions, and names them by the words that are typical of their texts.
- `captions` finds the titles and texts to show; `colors` chooses the points' colors.
- `drawing` is what all of these make: the map's content. `page` writes it as HTML, with `page.html` and `page.js`, and
  `picture` as PNG.
"""
