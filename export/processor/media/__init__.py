"""What a picture's or video's file may cost, read from its bytes before a library decodes them."""
