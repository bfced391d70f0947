/* Calls the parser over and over, and prints what it says of a length below zero
 * (CVE-2024-45490) and of a good document. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct XML_ParserStruct *XML_Parser;
XML_Parser XML_ParserCreate(const char *encoding);
void *XML_GetBuffer(XML_Parser p, int len);
int XML_ParseBuffer(XML_Parser p, int len, int is_final);
int XML_GetErrorCode(XML_Parser p);
void XML_ParserFree(XML_Parser p);

int main(void)
{
	static const char text[] = "<a>b</a>";
	for (;;) {
		XML_Parser p = XML_ParserCreate(NULL);
		XML_GetBuffer(p, 100);
		int bad = XML_ParseBuffer(p, -1, 1), why = XML_GetErrorCode(p);
		XML_ParserFree(p);
		p = XML_ParserCreate(NULL);
		memcpy(XML_GetBuffer(p, sizeof text), text, sizeof text - 1);
		int good = XML_ParseBuffer(p, sizeof text - 1, 1);
		XML_ParserFree(p);
		printf("status %d error %d, good %d\n", bad, why, good);
		fflush(stdout);
		usleep(20000);
	}
}
