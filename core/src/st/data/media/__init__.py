"""From bytes to pixels and sound: pictures, clips, sounds, and what each says of itself before it is decoded.

Imports stores and the nouns of ``st.data``.
Read ``media_reader.py`` first: what differs between kinds of media is asked there.
"""
