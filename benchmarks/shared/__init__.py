"""What more than one benchmark uses: machine, results, Markdown, charts, options, raw reads."""
