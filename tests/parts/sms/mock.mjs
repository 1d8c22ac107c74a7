// node mock.mjs
//
// npm's twillio-sms-mock on a free port of 127.0.0.1; prints the port on a line of its own, then what it is sent. Its own `start`
// listens on every address. Ends when standard input does, so that a killed test leaves nothing behind.
import mock from 'twillio-sms-mock';

const server = mock.createTwillioMockServer().getApp().listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.resume().on('end', () => process.exit(0));
