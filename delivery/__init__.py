"""How finished files leave: mirrors that sync themselves and downloads by ticket, from any folder of files."""
