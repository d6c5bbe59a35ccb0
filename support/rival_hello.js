// The two routes of the comparison, in Node's own HTTP server: "/wait" answers after 100 ms, all others at once.
const http = require("node:http");

const server = http.createServer((request, response) => {
  const answer = () => {
    const body = JSON.stringify({ message: "hello" });
    response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(body) });
    response.end(body);
  };
  if (request.url === "/wait") setTimeout(answer, 100);
  else answer();
});
server.keepAliveTimeout = 75000; // ms: longer than a client's, as for the other servers
server.listen(0, "127.0.0.1");
