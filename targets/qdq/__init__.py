"""QDQ ONNX files of others, read into the integer graph: reader.py walks the file, the others are its parts."""
