//! WebSocket, the server side without IO.
